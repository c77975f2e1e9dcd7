"""What a sweep measures: conditions over fields, the points of a grid, and profiles as TOML. No torch."""
