//! UEFI variables as EDK2 keeps them in flash (authenticated variable store): read on the host, edited the way a person
//! edits boot entries in firmware setup, compared before and after. Never touches a running machine's flash.
//!
//! Layout: EDK2 `MdeModulePkg/Include/Guid/VariableFormat.h` (`VARIABLE_STORE_HEADER`, `AUTHENTICATED_VARIABLE_HEADER`)
//! behind the firmware volume header of UEFI PI 1.8 vol. 3, 3.2.1.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

mod boot_entry;
#[cfg(test)]
mod tests;

pub use boot_entry::{description, hard_disk_entry, http_entry, network_entry, signature_list, usb_entry};

/// GUID in the byte order of the store (first three fields little-endian).
pub type Guid = [u8; 16];

/// `gEfiGlobalVariableGuid`: boot entries and order.
pub const GLOBAL: Guid = [
    0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c,
];
/// `gEfiImageSecurityDatabaseGuid`: `db`, `dbx`.
pub const IMAGE_SECURITY: Guid = [
    0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f,
];
/// `gEfiAuthenticatedVariableGuid`: marks the store.
const STORE: Guid = [
    0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92,
];

/// Non-volatile, readable by boot services and by the running system.
pub const BOOT_ATTRIBUTES: u32 = 0x7;

const VARIABLE_HEADER_BYTES: usize = 60;
const STORE_HEADER_BYTES: usize = 28;
const START_ID: u16 = 0x55aa;
const ADDED: u8 = 0x3f;
/// An update was under way: still the value, unless a finished one exists.
const IN_TRANSITION: u8 = 0x3e;
const DELETED_MASK: u8 = 0xfd;

/// Reading or editing a store failed. The file in flash was not changed.
#[derive(Debug, thiserror::Error)]
pub enum VariablesError {
    /// Reading or writing the file failed.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// No store in there: not a copy of `OVMF_VARS`, or of a build without authenticated variables.
    #[error("no authenticated variable store in this image")]
    NoStore,
    /// A header points outside the store: the image is damaged.
    #[error("damaged variable at offset {0:#x}")]
    Damaged(usize),
    /// No room for another variable (EDK2 would reclaim deleted ones; this editor does not).
    #[error("no room for {name} ({bytes} bytes)")]
    Full {
        /// Variable.
        name: String,
        /// Bytes needed.
        bytes: usize,
    },
}

/// Identity of a variable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Name.
    pub name: String,
    /// Vendor GUID.
    pub guid: Guid,
}

/// A live variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Attribute bits of `SetVariable`.
    pub attributes: u32,
    /// Content.
    pub data: Vec<u8>,
    /// Offset of its header in the image.
    offset: usize,
    /// State byte.
    state: u8,
}

/// One way in which two stores differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Which variable.
    pub key: Key,
    /// Content before; `None` if it did not exist.
    pub before: Option<Vec<u8>>,
    /// Content after; `None` if it is gone.
    pub after: Option<Vec<u8>>,
}

/// What may differ after a night (DESIGN section 5): what shim and the kernel's EFI stub write themselves, and what this
/// firmware rewrites at every boot whoever is booted (measured by `firmware_rewrites_only_what_is_allowed`).
/// The boot order is not in here, and never will be.
const ALLOWED: &[&str] = &[
    "SbatLevel",
    "SbatLevelRT",
    "MemoryOverwriteRequestControl",
    "MemoryOverwriteRequestControlLock",
    "MTC",
];

impl Difference {
    /// Whether a night may leave this difference.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        ALLOWED.contains(&self.key.name.as_str())
    }
}

/// A flash image with a variable store in it.
#[derive(Debug, Clone)]
pub struct FirmwareVariables {
    image: Vec<u8>,
    variables: BTreeMap<Key, Variable>,
    /// First byte of the store's free space.
    free: usize,
    /// First byte behind the store.
    end: usize,
}

impl FirmwareVariables {
    /// Reads a flash image from a file.
    ///
    /// # Errors
    /// As [`FirmwareVariables::parse`], and when the file cannot be read.
    pub fn read(path: &Path) -> Result<Self, VariablesError> {
        let file = |source| VariablesError::File {
            path: path.display().to_string(),
            source,
        };
        Self::parse(fs::read(path).map_err(file)?)
    }

    /// Writes the image to a file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), VariablesError> {
        let file = |source| VariablesError::File {
            path: path.display().to_string(),
            source,
        };
        fs::write(path, &self.image).map_err(file)
    }

    /// Finds the store in a flash image and lists its live variables.
    ///
    /// # Errors
    /// When there is no store or a header points outside of it.
    pub fn parse(image: Vec<u8>) -> Result<Self, VariablesError> {
        // Behind a firmware volume header, whose length is a u16 at 48.
        let start = usize::from(read_u16(&image, 48).ok_or(VariablesError::NoStore)?);
        if image.get(start..start + 16) != Some(&STORE[..]) {
            return Err(VariablesError::NoStore);
        }
        let size = read_u32(&image, start + 16).ok_or(VariablesError::NoStore)? as usize;
        let end = start
            .checked_add(size)
            .filter(|end| *end <= image.len())
            .ok_or(VariablesError::NoStore)?;
        let mut this = Self {
            image,
            variables: BTreeMap::new(),
            free: start + STORE_HEADER_BYTES,
            end,
        };
        this.scan()?;
        Ok(this)
    }

    fn scan(&mut self) -> Result<(), VariablesError> {
        let mut offset = self.free;
        while offset + VARIABLE_HEADER_BYTES <= self.end && read_u16(&self.image, offset) == Some(START_ID) {
            let (key, variable, next) = self.variable_at(offset).ok_or(VariablesError::Damaged(offset))?;
            let older_is_final = self.variables.get(&key).is_some_and(|known| known.state == ADDED);
            if variable.state == ADDED || (variable.state == IN_TRANSITION && !older_is_final) {
                self.variables.insert(key, variable);
            }
            offset = next;
        }
        self.free = offset;
        Ok(())
    }

    fn variable_at(&self, offset: usize) -> Option<(Key, Variable, usize)> {
        let name_bytes = read_u32(&self.image, offset + 36)? as usize;
        let data_bytes = read_u32(&self.image, offset + 40)? as usize;
        let name_start = offset + VARIABLE_HEADER_BYTES;
        let data_start = name_start.checked_add(name_bytes)?;
        let data_end = data_start
            .checked_add(data_bytes)
            .filter(|end| *end <= self.end)?;
        let units: Vec<u16> = self
            .image
            .get(name_start..data_start)?
            .chunks_exact(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
            .take_while(|unit| *unit != 0)
            .collect();
        let guid = self.image.get(offset + 44..offset + 60)?.try_into().ok()?;
        let variable = Variable {
            attributes: read_u32(&self.image, offset + 4)?,
            data: self.image.get(data_start..data_end)?.to_owned(),
            offset,
            state: *self.image.get(offset + 2)?,
        };
        Some((
            Key {
                name: String::from_utf16_lossy(&units),
                guid,
            },
            variable,
            align(data_end),
        ))
    }

    /// All live variables, by name.
    #[must_use]
    pub fn variables(&self) -> &BTreeMap<Key, Variable> {
        &self.variables
    }

    /// Content of one variable.
    #[must_use]
    pub fn data(&self, name: &str, guid: &Guid) -> Option<&[u8]> {
        let key = Key {
            name: name.to_owned(),
            guid: *guid,
        };
        self.variables.get(&key).map(|variable| variable.data.as_slice())
    }

    /// Sets a variable: the old one is marked deleted, the new one goes behind the last, as EDK2 does it.
    ///
    /// # Errors
    /// When the store is full; the image is then unchanged.
    pub fn set(
        &mut self,
        name: &str,
        guid: &Guid,
        attributes: u32,
        data: &[u8],
    ) -> Result<(), VariablesError> {
        let key = Key {
            name: name.to_owned(),
            guid: *guid,
        };
        let name_utf16: Vec<u8> = name
            .encode_utf16()
            .chain([0])
            .flat_map(u16::to_le_bytes)
            .collect();
        let bytes = VARIABLE_HEADER_BYTES + name_utf16.len() + data.len();
        let next = align(self.free + bytes);
        if next > self.end {
            return Err(VariablesError::Full {
                name: name.to_owned(),
                bytes,
            });
        }
        let old = self.variables.get(&key);
        let mut header = old.map_or_else(
            || vec![0; VARIABLE_HEADER_BYTES],
            // Keeps count and time stamp of an authenticated variable: they order later signed updates.
            |old| self.image[old.offset..old.offset + VARIABLE_HEADER_BYTES].to_vec(),
        );
        header[..2].copy_from_slice(&START_ID.to_le_bytes());
        header[2] = ADDED;
        header[3] = 0;
        header[4..8].copy_from_slice(&attributes.to_le_bytes());
        header[36..40].copy_from_slice(&length_u32(name_utf16.len()).to_le_bytes());
        header[40..44].copy_from_slice(&length_u32(data.len()).to_le_bytes());
        header[44..60].copy_from_slice(guid);
        let old_offset = old.map(|old| old.offset);
        if let Some(offset) = old_offset {
            self.image[offset + 2] &= DELETED_MASK;
        }
        let record: Vec<u8> = header
            .into_iter()
            .chain(name_utf16)
            .chain(data.iter().copied())
            .collect();
        self.image[self.free..self.free + bytes].copy_from_slice(&record);
        let variable = Variable {
            attributes,
            data: data.to_owned(),
            offset: self.free,
            state: ADDED,
        };
        self.variables.insert(key, variable);
        self.free = next;
        Ok(())
    }

    /// What differs in `after`, sorted by name.
    #[must_use]
    pub fn differences(&self, after: &Self) -> Vec<Difference> {
        let mut keys: Vec<&Key> = self.variables.keys().chain(after.variables.keys()).collect();
        keys.sort();
        keys.dedup();
        let content = |of: &Self, key: &Key| of.variables.get(key).map(|variable| variable.data.clone());
        keys.into_iter()
            .map(|key| Difference {
                key: key.clone(),
                before: content(self, key),
                after: content(after, key),
            })
            .filter(|difference| difference.before != difference.after)
            .collect()
    }

    /// The boot order as the numbers of its `Boot####` variables (UEFI 2.10, 3.3).
    #[must_use]
    pub fn boot_order(&self) -> Vec<u16> {
        let data = self.data("BootOrder", &GLOBAL).unwrap_or_default();
        data.chunks_exact(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
            .collect()
    }

    /// The entries of the boot order, as a person sees them listed in firmware setup.
    #[must_use]
    pub fn boot_entries(&self) -> Vec<String> {
        let entry = |number: u16| self.data(&format!("Boot{number:04X}"), &GLOBAL).map(description);
        self.boot_order()
            .into_iter()
            .map(|number| entry(number).unwrap_or_default())
            .collect()
    }

    /// Sets the boot order.
    ///
    /// # Errors
    /// When the store is full.
    pub fn set_boot_order(&mut self, order: &[u16]) -> Result<(), VariablesError> {
        let data: Vec<u8> = order.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.set("BootOrder", &GLOBAL, BOOT_ATTRIBUTES, &data)
    }

    /// Adds a certificate (DER) to `db`: what it signed may boot under Secure Boot.
    ///
    /// # Errors
    /// When the store is full.
    pub fn trust(&mut self, certificate: &[u8]) -> Result<(), VariablesError> {
        // Non-volatile, boot and run time, time-based authenticated: as db is defined (UEFI 2.10, 32.6.1).
        const ATTRIBUTES: u32 = 0x27;
        let mut db = self.data("db", &IMAGE_SECURITY).unwrap_or_default().to_vec();
        db.extend(signature_list(certificate));
        self.set("db", &IMAGE_SECURITY, ATTRIBUTES, &db)
    }
}

/// The GUID as people write it.
#[must_use]
pub fn guid_text(guid: &Guid) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let [a, b, c, d, e, f, g, h, rest @ ..] = *guid;
    format!(
        "{}-{}-{}-{}-{}",
        hex(&[d, c, b, a]),
        hex(&[f, e]),
        hex(&[h, g]),
        hex(&rest[..2]),
        hex(&rest[2..])
    )
}

fn align(offset: usize) -> usize {
    offset.next_multiple_of(4)
}

fn length_u32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn read_u16(image: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(
        image.get(offset..offset + 2)?.try_into().ok()?,
    ))
}

fn read_u32(image: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        image.get(offset..offset + 4)?.try_into().ok()?,
    ))
}
