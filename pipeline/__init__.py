"""The stages of a run and what they share: config, folder, loops, rollouts, generation. It joins the other packages."""
