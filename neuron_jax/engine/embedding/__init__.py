"""The engine of models that read whole texts: sizes, who is next, what computes; knows arrays, no sockets and no text."""
