use super::*;

fn store() -> FirmwareVariables {
    let path = crate::machine::ovmf("OVMF_VARS_4M.ms.fd").expect("ovmf is installed");
    FirmwareVariables::read(&path).expect("a variable store")
}

#[test]
fn the_vendor_store_has_its_keys() {
    let store = store();
    let names: Vec<&str> = store.variables().keys().map(|key| key.name.as_str()).collect();
    for name in ["PK", "KEK", "db", "dbx"] {
        assert!(names.contains(&name), "{names:?}");
    }
}

#[test]
fn what_was_set_is_read_back_from_the_bytes() {
    let before = store();
    let mut after = before.clone();
    after.set_boot_order(&[0, 1]).expect("room");
    after.set_boot_order(&[1, 0, 7]).expect("room");
    after.trust(b"certificate").expect("room");
    let reread = FirmwareVariables::parse(after.image.clone()).expect("a store");
    assert_eq!(reread.variables(), after.variables());
    assert_eq!(reread.boot_order(), [1, 0, 7]);
    let changed: Vec<String> = before
        .differences(&reread)
        .into_iter()
        .map(|found| found.key.name)
        .collect();
    assert_eq!(changed, ["BootOrder", "db"]);
}

#[test]
fn a_full_store_refuses_and_stays_as_it_was() {
    let mut store = store();
    let image = store.image.clone();
    let room = store.end - store.free;
    assert!(matches!(
        store.set("big", &GLOBAL, 7, &vec![0; room]),
        Err(VariablesError::Full { .. })
    ));
    assert_eq!(store.image, image);
}

#[test]
fn damaged_and_foreign_images_are_errors() {
    assert!(matches!(
        FirmwareVariables::parse(vec![]),
        Err(VariablesError::NoStore)
    ));
    assert!(matches!(
        FirmwareVariables::parse(vec![0; 4096]),
        Err(VariablesError::NoStore)
    ));
    let store = store();
    let first = store
        .variables()
        .values()
        .map(|variable| variable.offset)
        .min()
        .expect("variables");
    let mut image = store.image;
    image[first + 40..first + 44].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(
        FirmwareVariables::parse(image),
        Err(VariablesError::Damaged(_))
    ));
}

#[test]
fn guids_are_printed_as_people_write_them() {
    assert_eq!(guid_text(&GLOBAL), "8be4df61-93ca-11d2-aa0d-00e098032b8c");
}
