"""The passkey task of Mohtashami and Jaggi for the harness."""
