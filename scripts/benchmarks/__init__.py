"""Suites that compare Retape with its peers, both sides measured in the same run."""
