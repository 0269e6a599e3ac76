"""`TreeHeadAnchor`: its code and address, its calls as bytes, read and written."""
