"""The service: HTTP at one end, the story of one request in the middle, `axion` on the terminal."""

VERSION = "0.1.0"
