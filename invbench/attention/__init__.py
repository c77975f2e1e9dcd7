"""Self-attention over windows: the operators that involution was compared with (Li et al., CVPR 2021, section 4.2).

Each is the involution's sum (``invbench.ops``), with another weight. With o the output position (s*i, s*j), t = (u, v)
a tap, o + t the position (s*i + d*(u - K//2), s*j + d*(v - K//2)), and x' a 1x1 convolution of x, or x itself:

    y[n, c, i, j] = sum over t in the window of  weight[n, g(c), t, i, j] * x'[n, c, o + t]

    involution        weight = span(relu(norm(reduce(x[o]))))[t]                     made from one pixel
    local-attention   weight = softmax over t of q[o] . (k[o + t] + r[t])            from pairs of pixels
    san-pairwise      weight = softmax over t of f(x1[o] - x2[o + t], p[o] - p[o + t])
    san-patchwise     weight = f(x1[o], x2[o + t] of all t)[t]                       from the whole window
    axial-attention   a column's taps, and then a row's:
                      weight = softmax over t of norm(q[o] . k[o + t]) + norm(q[o] . r_q[t]) + norm(k[o + t] . r_k[t])
    local-relation    weight = softmax over t of -(q[o] - k[o + t])**2 + prior[t]

g(c) = c // (C // G), contiguous groups, but SAN's g(c) = c % G. Axial attention adds an embedding r_v[t] to its x'.
``ATTENTION`` names the operators and what computes each; ``operators.OPERATORS`` builds them. No torch here.
"""

from __future__ import annotations

# torch: plain PyTorch, everywhere. flex: torch.nn.attention.flex_attention, on GPUs.
ATTENTION: dict[str, tuple[str, ...]] = {
    "local-attention": ("torch", "flex"),
    "san-pairwise": ("torch",),
    "san-patchwise": ("torch",),
    "axial-attention": ("torch",),
    "local-relation": ("torch",),
}
