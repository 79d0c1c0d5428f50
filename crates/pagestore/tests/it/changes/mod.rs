//! What the change sources say is all that changed, on real servers.

mod chain;
mod state;
mod work;
