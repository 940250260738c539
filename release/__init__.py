"""Making of a release: archives, the checks that they pass, and the notices that they carry. Nothing is uploaded."""
