"""Answers as people and programs read them: tables, pictures, text forms, keys of JSON. Pure: nothing here prints."""
