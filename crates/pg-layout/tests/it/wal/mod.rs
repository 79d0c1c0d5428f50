//! The log of real servers, walked and compared with what PostgreSQL itself says about it.

mod agreement;
mod events;
mod judges;
mod walk;
mod workload;
