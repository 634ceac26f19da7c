//! [`Figures`]: what a machine's code cache has done, and what it holds.

/// What the code cache has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Blocks translated.
    pub translations: u64,
    /// Regions retired, …
    pub regions_retired: u64,
    /// … and of them those that no vCPU can be in any more, whose memory can be used again.
    pub regions_reclaimed: u64,
    /// Blocks invalidated one by one, those included that made place for longer ones, …
    pub blocks_invalidated: u64,
    /// … those that came back when their source bytes did, …
    pub blocks_revived: u64,
    /// … and those taken over from retired regions.
    pub blocks_adopted: u64,
    /// How often vCPUs were rung out since code became invalid.
    pub invalidations: u64,
    /// Writes to watched pages, by the guest and the host.
    pub code_writes: u64,
    /// Pages whose blocks check themselves, since they are written so often.
    pub checked_pages: u64,
    /// Direct jumps pointed at their targets.
    pub chained: u64,
    /// Guest instructions translated.
    pub instructions: u64,
    /// Bytes of guest code translated, and of host code made from them.
    pub guest_bytes: u64,
    /// See [`Self::guest_bytes`].
    pub host_bytes: u64,
    /// Bytes of code memory given back, …
    pub reclaimed_bytes: u64,
    /// … in use, those of retired regions included, …
    pub used_bytes: u64,
    /// … of retired regions alone, …
    pub retired_bytes: u64,
    /// … and free. All chunks have one size, so none of it is lost to fragments.
    pub free_bytes: u64,
}

impl Figures {
    /// All of them with their names, in order.
    #[must_use]
    pub fn rows(&self) -> [(&'static str, u64); 17] {
        [
            ("translations", self.translations),
            ("regions_retired", self.regions_retired),
            ("regions_reclaimed", self.regions_reclaimed),
            ("blocks_invalidated", self.blocks_invalidated),
            ("blocks_revived", self.blocks_revived),
            ("blocks_adopted", self.blocks_adopted),
            ("invalidations", self.invalidations),
            ("code_writes", self.code_writes),
            ("checked_pages", self.checked_pages),
            ("chained", self.chained),
            ("instructions", self.instructions),
            ("guest_bytes", self.guest_bytes),
            ("host_bytes", self.host_bytes),
            ("reclaimed_bytes", self.reclaimed_bytes),
            ("used_bytes", self.used_bytes),
            ("retired_bytes", self.retired_bytes),
            ("free_bytes", self.free_bytes),
        ]
    }
}
