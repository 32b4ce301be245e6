"""The nouns: frozen, slotted, keyword-only dataclasses. No formula of the cost model lives here."""
