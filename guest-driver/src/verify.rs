//! Full check.
