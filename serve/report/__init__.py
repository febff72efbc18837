"""`byol report`: runs and bundles as one self-contained page. Torch-free; plots by Bokeh, the page by Jinja2."""
