"""Parts of the instance and panoptic networks."""
