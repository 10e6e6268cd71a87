"""The generator of `rustguard bench generate`: an engine's two ends without TUN and TCP, and what they carry."""
