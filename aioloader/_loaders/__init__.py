"""TO WHOM: the faces that users see."""
