"""Models: `build.build` gives a `protocol.Model`, which all else uses."""
