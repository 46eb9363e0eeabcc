"""The web page: what people look at. It renders; analyses and answers are made elsewhere."""
