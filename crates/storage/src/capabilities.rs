//! What a storage can do and promises, as data: callers plan by it, the contract suite is gated
//! by it.

/// What stands behind the success of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// Nothing: the object lives as long as the process.
    Process,
    /// Content and name are synced to the device by this machine.
    Synced,
    /// Content is synced on the far side, its name in the directory can't be.
    ContentSynced,
    /// The far side acknowledged; what that means is the provider's promise.
    Provider,
    /// The far side acknowledged and may still hold everything in its memory.
    Acknowledged,
}

/// What a storage can do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Objects can be put.
    pub write: bool,
    /// Objects can be deleted.
    pub delete: bool,
    /// Keys can be listed.
    pub list: bool,
    /// A create-only put is enforced against every other writer.
    pub create_only: bool,
    /// A put under a version is enforced against every other writer.
    pub compare_and_swap: bool,
    /// Objects have versions, so reads can be bound to one.
    pub versions: bool,
    /// `head` tells the storage's own time.
    pub clock: bool,
    /// A repeated put with the same token recognises its own object.
    pub recognises_own_put: bool,
    /// `a` and `a/b` can both be objects.
    pub keys_below_keys: bool,
    /// The largest object in bytes, where a limit is known.
    pub max_object_size: Option<u64>,
    /// What a successful put means.
    pub durability: Durability,
}

impl Capabilities {
    /// Everything, with the given durability: a start for implementors, who then take away.
    pub fn full(durability: Durability) -> Self {
        Self {
            write: true,
            delete: true,
            list: true,
            create_only: true,
            compare_and_swap: true,
            versions: true,
            clock: true,
            recognises_own_put: true,
            keys_below_keys: true,
            max_object_size: None,
            durability,
        }
    }

    /// The same storage with nothing but reading.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.write = false;
        self.delete = false;
        self.create_only = false;
        self.compare_and_swap = false;
        self.recognises_own_put = false;
        self
    }
}
