"""Token partitioners: response tokens to named parts."""
