"""Memory reports: what a training step holds, predicted and measured, as plain data, and as pages, traces and text drawn from it."""
