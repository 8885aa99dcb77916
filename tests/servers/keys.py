"""Keys for servers of the tests, to be found nowhere but in requests."""

ACCESS_KEY = "AKIAEXAMPLEACCESSKEY"
SECRET_KEY = "example-secret-key-that-must-not-be-seen"
