"""What commands share: flags, messages, exit codes, and the only changes to the process."""
