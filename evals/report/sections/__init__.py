"""The sections of the page, in HTML: each is nothing where nothing was run that it could say."""
