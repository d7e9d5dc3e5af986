//! The policy language: rules, selectors, and the defaults.
