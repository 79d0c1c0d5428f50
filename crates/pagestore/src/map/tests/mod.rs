//! What page maps promise, shown against a simple model.

mod chains;
mod model;
mod store;
