"""One file per library; each is loaded when its library is imported, never before."""
