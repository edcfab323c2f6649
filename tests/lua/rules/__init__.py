"""Tests of the scripts of the rules' watchers."""
