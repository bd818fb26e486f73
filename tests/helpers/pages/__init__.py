"""What the tests of the documentation share: its pages, how they are run, and what they find."""
