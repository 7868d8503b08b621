//! The chart of cost against scale.
