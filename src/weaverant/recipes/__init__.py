"""Published multi-agent systems as recipes: each a folder with `recipe.py`, its prompts and a README with numbers."""
