//! How regions of a [`CodeCache`] go: retired, they are out of the lookups; when no vCPU can be in them,
//! their code memory goes back; some are kept for a while, so that their blocks can be adopted.

use super::arena::CHUNK_BYTES;
use super::cache::{CodeCache, page};
use super::region::{Region, RegionId};
use crate::guest::GuestAddress;

/// Retired regions of a page whose blocks can be adopted, …
const FORMER_OF_PAGE: usize = 3;
/// … and pages that have such.
const MOST_FORMER: usize = 1 << 12;
/// Regions whose memory is kept for others.
const MOST_SPARE: usize = 8;
/// One part in this many of the memory in use is retired when there is no room.
const PART_RETIRED: usize = 4;
/// One attempt to reclaim memory in this many helps the epoch on.
const SETTLE_ONE_IN: u64 = 16;

impl CodeCache {
    /// Retires every region that has to do with a guest page; whether there was one.
    pub(crate) fn retire_page(&mut self, address: GuestAddress) -> bool {
        let own = self.table.get(&page(address)).copied();
        let others = self.straddling.get(&page(address)).cloned().unwrap_or_default();
        let mut any = false;
        for id in own.into_iter().chain(others) {
            any |= self.retire(id);
        }
        any
    }

    /// Retires regions until a quarter of the memory in use is retired; whether that was still to be done.
    /// First go those that no lookup has come to since the last time, and the oldest before others. Lookups
    /// come again to those that are in use, since the vCPUs then empty their jump caches.
    pub(crate) fn retire_cold(&mut self) -> bool {
        let chunks = |region: &Region| region.chunks.len();
        let all: usize = self.regions.values().map(chunks).sum();
        let mut living: Vec<(bool, RegionId, usize)> = self
            .regions
            .iter()
            .filter(|(_, region)| !region.retired && !region.chunks.is_empty())
            .map(|(id, region)| (region.live.used.is_set(), *id, chunks(region)))
            .collect();
        living.sort_unstable();
        let mut retired = all - living.iter().map(|(_, _, chunks)| chunks).sum::<usize>();
        if retired * PART_RETIRED >= all {
            // It will be room, and nobody has had time to look up anything.
            return false;
        }
        for (_, id, chunks) in living {
            if retired * PART_RETIRED >= all {
                self.regions[&id].live.used.clear();
            } else {
                self.retire(id);
                retired += chunks;
            }
        }
        true
    }

    /// Retires every region.
    pub(crate) fn retire_all(&mut self) {
        let all: Vec<RegionId> = self.regions.keys().copied().collect();
        for id in all {
            self.retire(id);
        }
        self.forget_former();
    }

    /// Keeps nothing of retired regions but what vCPUs may be in.
    fn forget_former(&mut self) {
        self.former.clear();
        self.regions.retain(|_, region| {
            region.kept = 0;
            !region.retired || !region.chunks.is_empty()
        });
    }

    /// Takes a region out of all lookups; whether it was there. The caller then asks every vCPU to come
    /// out, before anything else of the cache's is called.
    fn retire(&mut self, id: RegionId) -> bool {
        let region = self.regions.get_mut(&id).filter(|region| !region.retired);
        let Some(region) = region else { return false };
        let guard = self.changer.pin();
        region.retired = true;
        region.live.retire();
        for page in &region.pages {
            self.lookups.0.remove(*page, &region.live, &guard);
        }
        for page in page(region.span.0)..=page(region.span.1) {
            self.table.remove(&page);
        }
        for page in &region.straddled {
            if let Some(ids) = self.straddling.get_mut(page) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.straddling.remove(page);
                }
            }
        }
        for page in &region.pages {
            self.former.entry(*page).or_default().push_back(id);
            region.kept += 1;
        }
        self.figures.regions_retired += 1;
        self.limbo.retire(id);
        true
    }

    /// Gives back the memory of retired regions that no vCPU can be in any more, as far as that is known.
    /// Of each page, the blocks of some regions are kept, to be adopted.
    pub(crate) fn reclaim(&mut self) {
        self.let_go();
        // Each time costs a look at every participant, so not each time that a block is made.
        self.reclaims += 1;
        if self.reclaims.is_multiple_of(SETTLE_ONE_IN) {
            self.limbo.settle(&self.changer.pin());
        }
        let returned = self.limbo.returned();
        if returned.is_empty() {
            return;
        }
        for id in returned {
            // One without a block may be forgotten by now.
            let Some(region) = self.regions.get_mut(&id) else { continue };
            for (chunk, _) in std::mem::take(&mut region.chunks) {
                self.owners[chunk.0 as usize] = None;
                self.arena.give_back(chunk);
                self.figures.reclaimed_bytes += CHUNK_BYTES as u64;
            }
            self.figures.regions_reclaimed += 1;
            if region.kept == 0 {
                self.forget(id);
                continue;
            }
            for page in std::mem::take(&mut region.pages) {
                self.limit_former(page);
            }
        }
        if self.former.len() > MOST_FORMER {
            self.forget_former();
        }
    }

    /// Has memory come back sooner, and first of all what was retired lately.
    pub(crate) fn hurry(&mut self) {
        self.let_go();
        self.changer.hurry();
    }

    /// Of what was retired the vCPUs know by now, or will when they look.
    fn let_go(&mut self) {
        self.changer.let_go(&self.limbo);
    }

    /// Lets go of regions that a page lay in long ago.
    fn limit_former(&mut self, page: u64) {
        while let Some(former) = self.former.get_mut(&page)
            && former.len() > FORMER_OF_PAGE
            && let Some(id) = former.pop_front()
        {
            let Some(region) = self.regions.get_mut(&id) else { continue };
            region.kept -= 1;
            if region.kept == 0 && region.chunks.is_empty() {
                self.forget(id);
            }
        }
    }

    /// Nobody needs a region any more.
    fn forget(&mut self, id: RegionId) {
        let region = self.regions.remove(&id).filter(|_| self.spare.len() < MOST_SPARE);
        self.spare.extend(region.map(Region::emptied));
    }

    /// Retired regions that are not reclaimed.
    pub(crate) fn waiting(&self) -> usize {
        self.limbo.count()
    }
}
