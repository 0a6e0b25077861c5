//! Translation between wire and domain, one file per message family.
