"""Where the base of ``check`` comes from: real repositories and wheels, trees of users that stay as they are, kills."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from invbench.harness.gate import unpacking
from invbench.harness.gate.requirements import requirements_in
from invbench.harness.gate.trees import Tree, differing, mirrored, repository, requirements_of, revision, wheel
from invbench.spec import InvbenchError

PYPROJECT = "[project]\nname = 'a'\ndependencies = ['torch >= 2.5', \"triton>=3.2; sys_platform == 'linux'\"]\n"
REQUIREMENTS = ("torch>=2.5", 'triton>=3.2; sys_platform == "linux"')
GIT = shutil.which("git") or "git"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, and a git that knows nothing of this machine's user."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    settings = "[user]\n\tname = Ä\n\temail = a@example.org\n[init]\n\tdefaultBranch = main\n[gc]\n\tauto = 0\n"
    (home / ".gitconfig").write_text(settings)
    for name, value in (
        ("HOME", str(home)),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CEILING_DIRECTORIES", str(tmp_path)),
        ("INVBENCH_CACHE_DIR", str(tmp_path / "cache")),
    ):
        monkeypatch.setenv(name, value)


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run([GIT, "-c", "protocol.file.allow=always", *arguments], cwd=folder, capture_output=True)
    assert done.returncode == 0, done.stderr
    return os.fsdecode(done.stdout).strip()


def commit(folder: Path, files: Mapping[str, str]) -> str:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode())
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", f"with {' '.join(files)}")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """Two commits: package/op.py says base in the first, head in the second."""
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "--quiet")
    commit(folder, {"package/op.py": "base", "package/__init__.py": "", "pyproject.toml": PYPROJECT})
    commit(folder, {"package/op.py": "head"})
    return folder


def contents(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """All files of a folder: mode, time and content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        content = b"" if path.is_dir() else os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
        found[str(path.relative_to(folder))] = (state.st_mode, state.st_mtime_ns, content)
    return found


def trees() -> Path:
    return Path(os.environ["INVBENCH_CACHE_DIR"]) / "trees"


def kept() -> set[str]:
    return {path.name for path in trees().iterdir() if path.is_dir()}


def refusal(rev: str, start: Path) -> str:
    with pytest.raises(InvbenchError) as caught:
        revision(rev, start)
    message = str(caught.value)
    assert "\n" not in message
    assert "--base" in message
    return message


# --- Revisions ---


def test_a_revision_is_unpacked_where_its_commit_says(repo: Path) -> None:
    base = git(repo, "rev-parse", "HEAD~1")
    tree = revision("HEAD~1", repo / "package" / "op.py")
    assert tree == Tree(trees() / base, f"HEAD~1 ({base[:12]})", base, REQUIREMENTS)
    assert (tree.root / "package" / "op.py").read_text() == "base"
    assert {path.name for path in tree.root.iterdir()} == {"package", "pyproject.toml"}
    assert kept() == {base}


def test_all_names_of_a_commit_are_one_tree(repo: Path) -> None:
    base = git(repo, "rev-parse", "HEAD~1")
    git(repo, "tag", "light", "HEAD~1")
    git(repo, "tag", "--annotate", "--message", "v1", "v1.0", "HEAD~1")
    git(repo, "branch", "old/branch", "HEAD~1")
    names = ["light", "v1.0", "old/branch", "HEAD^", ":/with package.op.py package.__init__", "main@{0}~1"]
    found = {rev: revision(rev, repo) for rev in names}
    assert {tree.root for tree in found.values()} == {trees() / base}
    assert found["v1.0"].name == f"v1.0 ({base[:12]})"
    assert revision(base, repo).name == revision(base[:7], repo).name == base[:12]


@pytest.mark.parametrize(
    "settings", [{}, {"core.splitIndex": "true", "core.fsmonitor": "true"}], ids=["plain", "split"]
)
def test_nothing_of_the_users_changes(repo: Path, settings: dict[str, str]) -> None:
    for name, value in settings.items():
        git(repo, "config", name, value)
    hook = repo / ".git" / "hooks" / "post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch '{repo}/hook-ran'\n")
    hook.chmod(0o755)
    (repo / "package" / "op.py").write_text("uncommitted")
    (repo / "new.py").write_text("untracked")
    (repo / "staged.py").write_text("staged")
    (repo / ".gitattributes").write_text("*.py text eol=crlf\n")
    git(repo, "-c", f"core.hooksPath={os.devnull}", "-c", "core.fsmonitor=false", "add", "staged.py")
    before = contents(repo)
    for rev in ("HEAD", "HEAD~1"):
        tree = revision(rev, repo)
        assert (tree.root / "package" / "op.py").read_bytes() == (b"head" if rev == "HEAD" else b"base")
        assert {path.name for path in tree.root.iterdir()} == {"package", "pyproject.toml"}
    refusal("nonsense", repo)
    assert contents(repo) == before


def test_links_modes_and_names_survive(repo: Path) -> None:
    odd = {"with space/ä ß.py": "1", "-dash": "2", 'quo"te\n': "3", "skipped.txt": "4", "run.sh": "#!/bin/sh"}
    commit(repo, {**odd, ".gitattributes": "skipped.txt export-ignore\n"})
    (repo / "run.sh").chmod(0o755)
    (repo / "to-folder").symlink_to("package")
    (repo / "dangling").symlink_to("nowhere")
    commit(repo, {})
    root = revision("HEAD", repo).root
    assert {name: (root / name).read_text() for name in odd} == odd
    assert (root / "run.sh").stat().st_mode & stat.S_IXUSR
    assert not (root / "-dash").stat().st_mode & stat.S_IXUSR
    assert ((root / "to-folder").readlink(), (root / "dangling").readlink()) == (Path("package"), Path("nowhere"))
    place = root.stat().st_ino
    assert revision("HEAD", repo).root.stat().st_ino == place


def test_filters_and_attributes_of_the_revision_apply(repo: Path) -> None:
    git(repo, "config", "filter.loud.smudge", "tr a-z A-Z")
    git(repo, "config", "filter.loud.clean", "tr A-Z a-z")
    commit(repo, {".gitattributes": "*.crlf text eol=crlf\n*.loud filter=loud\n", "a.crlf": "a\nb\n", "a.loud": "hey"})
    commit(repo, {".gitattributes": ""})
    root = revision("HEAD~1", repo).root
    assert ((root / "a.crlf").read_bytes(), (root / "a.loud").read_bytes()) == (b"a\r\nb\r\n", b"HEY")


def test_sparse_and_linked_work_trees_have_their_own_head_and_whole_bases(repo: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    git(repo, "worktree", "add", "--quiet", "--detach", str(linked), "HEAD~1")
    git(linked, "sparse-checkout", "set", "nothing")
    before = contents(repo), contents(linked)
    tree = revision("HEAD", linked)
    assert (tree.root / "package" / "op.py").read_text() == "base"
    assert (contents(repo), contents(linked)) == before
    assert repository(linked) == linked


def test_files_of_submodules_are_absent(repo: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", str(repo), "other")
    git(repo, "submodule", "--quiet", "add", str(tmp_path / "other"), "part")
    commit(repo, {})
    root = revision("HEAD", repo).root
    assert list((root / "part").iterdir()) == []
    assert (root / ".gitmodules").is_file()


def test_an_empty_commit_is_a_tree(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "empty")
    commit(tmp_path / "empty", {})
    tree = revision("HEAD", tmp_path / "empty")
    assert (list(tree.root.iterdir()), tree.requirements) == ([], ())


# --- Refusals ---


@pytest.mark.parametrize(
    "rev", ["nonsense", "", "-h", "--all", "^HEAD", "HEAD..HEAD", "HEAD:package/op.py", "a\0b", "ä b"]
)
def test_what_is_no_revision_is_refused(repo: Path, rev: str) -> None:
    message = refusal(rev, repo)
    assert repr(rev) in message
    assert "git fetch" in message
    assert not trees().exists()


def test_an_unknown_revision_has_hints(repo: Path, tmp_path: Path) -> None:
    git(repo, "branch", "feature")
    assert "Did you mean feature?" in refusal("featrue", repo)
    git(tmp_path, "clone", "--quiet", str(repo), "clone")
    assert "Did you mean origin/feature?" in refusal("feature", tmp_path / "clone")


def test_a_shallow_clone_says_how_to_deepen_it(repo: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--depth=1", repo.as_uri(), "shallow")
    message = refusal("HEAD~1", tmp_path / "shallow")
    assert "git fetch --unshallow" in message
    assert "fetch-depth: 0" in message
    assert (revision("HEAD", tmp_path / "shallow").root / "package" / "op.py").read_text() == "head"


def test_outside_of_a_checkout(repo: Path, tmp_path: Path) -> None:
    plain, bare = tmp_path / "plain", tmp_path / "bare"
    plain.mkdir()
    git(tmp_path, "clone", "--quiet", "--bare", str(repo), "bare")
    assert "fatal: not a git repository" in refusal("HEAD", plain)
    assert "must be run in a work tree" in refusal("HEAD", bare)
    assert "must be run in a work tree" in refusal("HEAD", repo / ".git")
    assert "nowhere" in refusal("HEAD", tmp_path / "nowhere" / "file.py")
    with pytest.raises(InvbenchError, match="--base-wheel FILE"):
        repository(plain)


def test_a_repository_of_somebody_else(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    message = refusal("HEAD", repo)
    assert "fatal: detected dubious ownership in repository" in message
    assert f"git config --global --add safe.directory {repo}" in message
    # Trust by variables, as jobs of a CI give it, is heeded.
    for name, value in (("COUNT", "1"), ("KEY_0", "safe.directory"), ("VALUE_0", "*")):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    assert revision("HEAD", repo).commit


def test_without_git(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repo))
    assert "install git, or give --base-wheel FILE" in refusal("HEAD", repo)


def test_an_object_that_is_lost(repo: Path) -> None:
    lost = git(repo, "rev-parse", "HEAD:package/op.py")
    (repo / ".git" / "objects" / lost[:2] / lost[2:]).unlink()
    assert lost in refusal("HEAD", repo)
    assert kept() == set()


def test_a_pyproject_of_the_base_that_is_damaged(repo: Path) -> None:
    commit(repo, {"pyproject.toml": "[project"})
    assert "pyproject.toml" in refusal("HEAD", repo)


# --- Variables of hooks ---


def test_what_git_sets_for_hooks_misleads_nobody(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "--quiet", "other")
    other = tmp_path / "other"
    commit(other, {"other.py": "other"})
    before = contents(repo), contents(other)
    for name, value in (("GIT_DIR", ".git"), ("GIT_WORK_TREE", "."), ("GIT_INDEX_FILE", ".git/index")):
        monkeypatch.setenv(name, str(other / value))
    monkeypatch.setenv("GIT_PREFIX", "package/")
    monkeypatch.chdir(other)
    assert (revision("HEAD~1", repo).root / "package" / "op.py").read_text() == "base"
    assert repository(repo / "package") == repo
    assert (contents(repo), contents(other)) == before


def test_in_a_hook_of_a_push(repo: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--bare", str(repo), "bare")
    git(repo, "remote", "add", "origin", str(tmp_path / "bare"))
    hook = repo / ".git" / "hooks" / "pre-push"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\n{' '.join(map(repr, program('HEAD~1', Path())))} > hook-told\n")
    hook.chmod(0o755)
    index = (repo / ".git" / "index").read_bytes()
    git(repo, "push", "--quiet", "origin", "main:new")
    assert (repo / "hook-told").read_text().strip() == str(trees() / git(repo, "rev-parse", "HEAD~1"))
    assert (repo / ".git" / "index").read_bytes() == index


# --- Kept, damaged, killed ---


def program(rev: str, start: Path) -> list[str]:
    code = "import sys; from pathlib import Path; from invbench.harness.gate.trees import revision; "
    return [sys.executable, "-c", code + "print(revision(sys.argv[1], Path(sys.argv[2])).root)", rev, str(start)]


def test_a_tree_is_unpacked_once_and_keeps_what_was_compiled(repo: Path) -> None:
    root = revision("HEAD", repo).root
    compiled = root / "package" / "__pycache__" / "op.nbi"
    compiled.parent.mkdir()
    compiled.write_text("kernels")
    before = contents(root)
    assert revision("main", repo).root == root
    assert contents(root) == before


@pytest.mark.parametrize("damage", ["a file", "a folder", "its content", "its time", "all of it", "the stamp", "torn"])
def test_a_damaged_tree_is_unpacked_again(repo: Path, damage: str) -> None:
    root = revision("HEAD", repo).root
    before = contents(root)
    stamp = root.with_name(f"{root.name}.json")
    {
        "a file": lambda: (root / "package" / "op.py").unlink(),
        "a folder": lambda: shutil.rmtree(root / "package"),
        "its content": lambda: (root / "package" / "op.py").write_text("longer than before"),
        "its time": lambda: (root / "package" / "op.py").write_text("HEAD"),
        "all of it": lambda: shutil.rmtree(root),
        "the stamp": stamp.unlink,
        "torn": lambda: stamp.write_text('{"package/op.py": [4'),
    }[damage]()
    assert revision("HEAD", repo).root == root
    files = {name: state for name, state in contents(root).items() if not stat.S_ISDIR(state[0])}
    # Also the times, by which kernels in the cache of Numba are known.
    assert files == {name: state for name, state in before.items() if not stat.S_ISDIR(state[0])}
    assert kept() == {root.name}


@pytest.mark.parametrize("step", ["read-tree", "checkout-index"])
@pytest.mark.parametrize("orphan", [False, True], ids=["group", "python alone"])
def test_killed_while_unpacking(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, orphan: bool
) -> None:
    slow, reached = tmp_path / "slow", tmp_path / "reached"
    slow.mkdir()
    script = f"""#!/bin/sh
case "$*" in *" {step} "*) echo half > half; touch '{reached}'; sleep 60 ;; esac
exec '{GIT}' "$@"
"""
    (slow / "git").write_text(script)
    (slow / "git").chmod(0o755)
    before = contents(repo)
    environment = {**os.environ, "PATH": f"{slow}{os.pathsep}{os.environ['PATH']}"}
    with subprocess.Popen(
        program("HEAD", repo), env=environment, start_new_session=True, stdout=-3, stderr=-3
    ) as child:
        try:
            deadline = time.monotonic() + 20
            while not reached.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(kept()) == 1
            # While it lives, it is waited for, and its work is left alone.
            monkeypatch.setattr(unpacking, "LOCK_SECONDS", 0.05)
            assert "another process" in refusal("HEAD", repo)
            assert len(kept()) == 1
            (child.kill if orphan else lambda: os.killpg(child.pid, signal.SIGKILL))()
            child.wait()
            assert contents(repo) == before
            root = revision("HEAD", repo).root
        finally:
            os.killpg(child.pid, signal.SIGKILL) if orphan else child.kill()
    assert kept() == {root.name}
    assert {path.name for path in root.iterdir()} == {"package", "pyproject.toml"}
    assert contents(repo) == before


@pytest.mark.parametrize("call", ["rename", "replace"])
def test_killed_between_two_steps(repo: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    with monkeypatch.context() as patched:
        # Nothing is tidied up, as after a kill.
        patched.setattr(Path, call, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            revision("HEAD", repo)
    root = revision("HEAD", repo).root
    assert (root / "package" / "op.py").read_text() == "head"
    assert kept() == {root.name}


def test_many_at_once_get_one_tree(repo: Path) -> None:
    children = [
        subprocess.Popen(program(rev, repo), stdout=-1, text=True) for rev in ("HEAD", "main", "HEAD~1", "HEAD")
    ]
    told = [child.communicate(timeout=60)[0].strip() for child in children]
    assert [child.returncode for child in children] == [0] * 4
    head, base = (str(trees() / git(repo, "rev-parse", rev)) for rev in ("HEAD", "HEAD~1"))
    assert told == [head, head, base, head]
    assert kept() == {Path(head).name, Path(base).name}


def test_trees_that_were_not_used_for_long_are_removed(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "KEPT", 2)
    others = [trees() / "mine", trees() / "mine.json"]
    revs = [commit(repo, {"a.py": str(number)}) for number in range(5)]
    for rev in revs[:4]:
        revision(rev, repo)
    for path in others:
        path.mkdir()
    assert kept() == {*revs[:4], "mine", "mine.json"}  # all may still be in use
    for age, rev in enumerate(revs[:4]):
        then = time.time() - 7200 + age
        os.utime(trees() / f"{rev}.json", (then, then))
    revision(revs[0], repo)  # the oldest, used again
    assert kept() == {revs[0], revs[3], "mine", "mine.json"}
    revision(revs[4], repo)
    assert kept() == {revs[0], revs[4], "mine", "mine.json"}
    assert not (trees() / f"{revs[1]}.json").exists()


# --- The cache ---


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_cache_that_cannot_be_written(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(unpacking, "cache_directory", lambda: tmp_path / name)
    assert "set INVBENCH_CACHE_DIR to a writable folder" in refusal("HEAD", repo)


def test_a_read_only_cache(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o555)
    if os.access(tmp_path / "cache", os.W_OK):
        pytest.skip("this user may write everywhere")
    assert "set INVBENCH_CACHE_DIR to a writable folder" in refusal("HEAD", repo)


def test_a_full_disk_and_no_home(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (OSError(28, "No space left on device"), RuntimeError("Could not determine home directory.")):
        monkeypatch.setattr(unpacking, "cache_directory", lambda error=error: (_ for _ in ()).throw(error))
        assert "set INVBENCH_CACHE_DIR to a writable folder" in refusal("HEAD", repo)


def test_a_relative_cache_is_where_it_was_meant(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INVBENCH_CACHE_DIR", "relative")
    assert revision("HEAD", repo).root.parent == tmp_path / "relative" / "trees"


# --- Wheels ---

METADATA = """Metadata-Version: 2.4
Name: thing
Requires-Dist: torch (>=2.5)
Requires-Dist: triton>=3.2; sys_platform == "linux"
Requires-Dist: bokeh>=3; extra == 'report'

Requires-Dist: in the description
"""
WHEEL = {"thing/__init__.py": "wheel", "thing-1.dist-info/METADATA": METADATA}


def wheel_of(tmp_path: Path, files: Mapping[str, str], name: str = "thing-1-py3-none-any.whl") -> Path:
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for each, content in files.items():
            archive.writestr(each, content)
    return tmp_path / name


def test_a_wheel_is_unpacked(tmp_path: Path) -> None:
    data = {f"thing-1.data/{each}.py": each for each in ("purelib/pure", "platlib/thing/plat", "scripts/script")}
    file = wheel_of(tmp_path, {"thing/": "", **WHEEL, **data})
    tree = wheel(file)
    key = hashlib.sha256(file.read_bytes()).hexdigest()[:40]
    assert tree == Tree(trees() / key, file.name, None, REQUIREMENTS)
    found = {str(path.relative_to(tree.root)): path.read_text() for path in tree.root.rglob("*") if path.is_file()}
    moved = {"pure.py": "purelib/pure", "thing/plat.py": "platlib/thing/plat"}
    assert found == {**WHEEL, **moved, "thing-1.data/scripts/script.py": "scripts/script"}
    place = tree.root.stat().st_ino
    assert wheel(file) == tree
    assert tree.root.stat().st_ino == place


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"thing/__init__.py": ""}, "no NAME.dist-info/METADATA"),
        ({**WHEEL, "other-1.dist-info/METADATA": ""}, "or several"),
        ({**WHEEL, "thing-1.data/purelib/b.dist-info/METADATA": ""}, "or several"),
        ({**WHEEL, "../outside.py": ""}, "leads outside"),
        ({**WHEEL, "/outside.py": ""}, "leads outside"),
        ({**WHEEL, "C:/outside.py": ""}, "leads outside"),
        ({**WHEEL, "a\\..\\outside.py": ""}, "leads outside"),
        ({**WHEEL, "thing-1.data/purelib//outside.py": ""}, "leads outside"),
        ({**WHEEL, "thing-1.data/platlib/../../../outside.py": ""}, "leads outside"),
    ],
)
def test_a_zip_that_is_no_wheel(tmp_path: Path, files: dict[str, str], words: str) -> None:
    with pytest.raises(InvbenchError, match=f"--base-wheel takes a wheel: got thing.*{words}.*pip wheel"):
        wheel(wheel_of(tmp_path, files))
    assert kept() == set()
    assert not list(tmp_path.rglob("outside.py"))


def test_a_file_that_is_no_wheel(tmp_path: Path) -> None:
    damaged = wheel_of(tmp_path, {**WHEEL, "thing/big.py": "".join(map(str, range(999)))})
    content = bytearray(damaged.read_bytes())
    middle = content.index(b"thing/big.py") + 200
    content[middle : middle + 50] = bytes(50)
    damaged.write_bytes(content)
    (tmp_path / "text.whl").write_text("no zip")
    for file, words in (
        (damaged, "CRC|invalid|decompressing"),
        (tmp_path / "text.whl", "not a zip file"),
        (tmp_path / "missing.whl", "No such file"),
        (tmp_path, "directory"),
    ):
        with pytest.raises(InvbenchError, match=f"--base-wheel takes a wheel: got .*{file.name}.*({words})"):
            wheel(file)
    assert kept() == set()


# --- Requirements, and where a folder lies ---


def test_requirements_are_in_one_spelling(tmp_path: Path) -> None:
    spellings = ["Torch >=2.6 , <3", "torch<3,>=2.6", "torch (>=2.6,<3)"]
    assert {requirements_in(f"Requires-Dist: {each}\n") for each in spellings} == {("torch<3,>=2.6",)}
    assert requirements_in("Requires-Dist: a_B.c[x, y]>1;python_version<'3.12' and(os_name=='nt')\n") == (
        'a-b-c[x,y]>1; python_version < "3.12" and ( os_name == "nt" )',
    )
    assert requirements_in("Requires-Dist: a @ https://example.org/a;b#c=1\nName: x\n") == (
        "a @ https://example.org/a;b#c=1",
    )
    assert requirements_of(tmp_path) == requirements_in("Name: x\n") == ()
    (tmp_path / "pyproject.toml").write_text("[tool.x]\n")
    assert requirements_of(tmp_path) == ()
    for damaged in ("[project]\ndependencies = 3", "[project]\ndependencies = [3]", "project = 3", "="):
        (tmp_path / "pyproject.toml").write_text(damaged)
        with pytest.raises(InvbenchError, match="repair that file"):
            requirements_of(tmp_path)


def test_differences_are_told() -> None:
    assert differing(("a", "torch>=2.5"), ("a", "torch>=2.6")) == "base wants torch>=2.5, head torch>=2.6"
    assert differing(("a", "b"), ("b",)) == "base wants a, head does not"
    assert differing((), ("a", "b")) == "head wants a, b, base does not"
    assert differing(("a", "b"), ("b", "a")) is None


def test_a_folder_is_found_in_the_tree(repo: Path, tmp_path: Path) -> None:
    (repo / "link").symlink_to(repo / "package")
    commit(repo, {})
    (repo / "new").mkdir()
    tree = revision("HEAD", repo)
    assert mirrored(tree, repo, repo / "package") == tree.root / "package"
    assert mirrored(tree, repo, repo) == tree.root
    assert mirrored(tree, repo, repo / "link") == tree.root / "package"
    for folder in (repo / "new", repo / "package" / "op.py", tmp_path, repo / "package" / ".." / ".."):
        with pytest.raises(InvbenchError, match="--base: "):
            mirrored(tree, repo, folder)
    # Absolute links of the base lead back to the head.
    (repo / "link").unlink()
    (repo / "link").mkdir()
    with pytest.raises(InvbenchError, match="has no folder link of its own"):
        mirrored(tree, repo, repo / "link")
