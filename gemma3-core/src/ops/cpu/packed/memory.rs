//! The memory of weights that are laid out anew: in pages of 2 MiB where the system has them.
//!
//! A decode step reads all weights once, so that nearly every page of 4 KiB costs a look-up of its address, in a
//! virtual machine through two tables.

use std::io;

use memmap2::MmapMut;

/// Bytes of their own pages, zeros at first.
#[derive(Debug)]
pub(super) struct Pages {
    map: MmapMut,
    len: usize,
}

impl Pages {
    /// # Errors
    ///
    /// When the system does not give that much address space.
    pub(super) fn zeroed(len: usize) -> io::Result<Self> {
        let map = MmapMut::map_anon(len.max(1))?;
        #[cfg(target_os = "linux")]
        {
            let _ = map.advise(memmap2::Advice::HugePage); // Without them it is slower, nothing else.
        }
        Ok(Self { map, len })
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.map[..self.len]
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.map[..self.len]
    }
}
