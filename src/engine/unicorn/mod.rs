//! Unicorn.
