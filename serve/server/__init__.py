"""`byol serve`: a bundle over HTTP, in OpenAI's, KServe's and a plain form. Needs the `server` extra; no torch."""
