"""What is measured and how it is told: definitions, exposition, page. Gathers nothing itself."""
