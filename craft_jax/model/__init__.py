"""Models: `build.build` makes one, other packages see a `protocol.Model`."""
