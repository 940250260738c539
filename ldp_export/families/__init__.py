"""Parts of a build that differ between families of models; one module per family, behind `families.base.Family`."""
