"""What happens between registering a task and handing over its instructions."""
