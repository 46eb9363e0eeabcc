"""The forms of an answer: text with pictures, JSON, Markdown, HTML."""
