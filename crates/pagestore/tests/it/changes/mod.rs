//! What the change sources say is all that changed, on real servers.

mod chain;
mod forged;
mod hint_logging;
mod online;
mod proportion;
mod rules;
mod scan;
mod settings;
mod state;
mod stored;
mod stored_online;
mod summaries;
mod validity;
mod walk;
mod work;
