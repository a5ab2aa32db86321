"""Parts of the updater: optimizer classes, parameter groups, gradient handling, optimizer state."""
