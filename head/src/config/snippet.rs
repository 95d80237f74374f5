//! What somebody else's DHCP server needs so that it sends PCs to this head (`mode = "off"`): text for its configuration.
//! Must not look at the machine it runs on.
//!
//! Every product gets the same table: BIOS ROMs the iPXE file over TFTP, iPXE its script over HTTP, UEFI the shim over
//! TFTP, UEFI HTTP Boot its URL. Whether a PC that follows it boots, the boot policy decides file by file.

use std::net::Ipv4Addr;

/// A DHCP server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Product {
    /// ISC dhcpd 4.
    Isc,
    /// ISC Kea, DHCPv4.
    Kea,
    /// dnsmasq.
    Dnsmasq,
    /// Windows Server's DHCP role, as PowerShell.
    Windows,
}

/// The lines for `product` that point at the head at `head`.
pub fn snippet(product: Product, head: Ipv4Addr) -> String {
    let text = match product {
        Product::Isc => ISC,
        Product::Kea => KEA,
        Product::Dnsmasq => DNSMASQ,
        Product::Windows => WINDOWS,
    };
    text.replace("@HEAD@", &head.to_string())
}

/// iPXE fills its own card's address in, so that a PC behind a router is known; the others are known by the wire's
/// neighbour table, or by the name that GRUB asks for.
const ISC: &str = r#"# CID: for dhcpd.conf, at the top level.
option arch code 93 = unsigned integer 16;
option user-class code 77 = string;
class "cid-ipxe" {
  match if option user-class = "iPXE" and option arch = 00:00;
  next-server @HEAD@;
  filename "http://@HEAD@/m/${netX/mac:hexhyp}/boot.ipxe";
}
class "cid-bios" {
  match if substring(option vendor-class-identifier, 0, 9) = "PXEClient" and option arch = 00:00
    and not (option user-class = "iPXE");
  next-server @HEAD@;
  filename "undionly.kpxe";
}
class "cid-uefi" {
  match if substring(option vendor-class-identifier, 0, 9) = "PXEClient" and (option arch = 00:07 or option arch = 00:09);
  next-server @HEAD@;
  filename "shimx64.efi";
}
class "cid-http" {
  match if substring(option vendor-class-identifier, 0, 10) = "HTTPClient" and option arch = 00:10;
  # GRUB knows an HTTP boot by the zero byte.
  option vendor-class-identifier 48:54:54:50:43:6c:69:65:6e:74:00;
  next-server @HEAD@;
  filename "http://@HEAD@/shimx64.efi";
}
"#;

const KEA: &str = r#"// CID: for kea-dhcp4.conf, inside "Dhcp4". If "client-classes" is there already, add these four to it.
"client-classes": [
  {
    "name": "cid-ipxe",
    "test": "option[77].hex == 'iPXE' and option[93].hex == 0x0000",
    "next-server": "@HEAD@",
    "boot-file-name": "http://@HEAD@/m/${netX/mac:hexhyp}/boot.ipxe"
  },
  {
    "name": "cid-bios",
    "test": "substring(option[60].hex,0,9) == 'PXEClient' and option[93].hex == 0x0000 and not (option[77].hex == 'iPXE')",
    "next-server": "@HEAD@",
    "boot-file-name": "undionly.kpxe"
  },
  {
    "name": "cid-uefi",
    "test": "substring(option[60].hex,0,9) == 'PXEClient' and (option[93].hex == 0x0007 or option[93].hex == 0x0009)",
    "next-server": "@HEAD@",
    "boot-file-name": "shimx64.efi"
  },
  {
    "name": "cid-http",
    "test": "substring(option[60].hex,0,10) == 'HTTPClient' and option[93].hex == 0x0010",
    "next-server": "@HEAD@",
    "boot-file-name": "http://@HEAD@/shimx64.efi",
    "option-data": [ { "name": "vendor-class-identifier", "data": "48545450436c69656e7400", "csv-format": false } ]
  }
]
"#;

const DNSMASQ: &str = r#"# CID: for dnsmasq.conf, or a file in /etc/dnsmasq.d.
dhcp-match=set:cid-ipxe,77,iPXE
dhcp-match=set:cid-bios,option:client-arch,0
dhcp-match=set:cid-uefi,option:client-arch,7
dhcp-match=set:cid-uefi,option:client-arch,9
dhcp-match=set:cid-http,option:client-arch,16
dhcp-boot=tag:cid-ipxe,tag:cid-bios,http://@HEAD@/m/${netX/mac:hexhyp}/boot.ipxe,@HEAD@,@HEAD@
dhcp-boot=tag:!cid-ipxe,tag:cid-bios,undionly.kpxe,@HEAD@,@HEAD@
dhcp-boot=tag:cid-uefi,shimx64.efi,@HEAD@,@HEAD@
dhcp-boot=tag:cid-http,http://@HEAD@/shimx64.efi,@HEAD@,@HEAD@
# GRUB knows an HTTP boot by the zero byte at the end of HTTPClient.
dhcp-option-force=tag:cid-http,60,48:54:54:50:43:6c:69:65:6e:74:00
"#;

/// Never tried on a Windows server by us; the cmdlets are those of the DhcpServer module.
const WINDOWS: &str = r#"# CID: PowerShell for the Windows DHCP role, as an administrator. Not tried on a real Windows server yet.
# Without -ScopeId a policy holds for the whole server. Remove options 60 and 43 if this server was a WDS.
$head = '@HEAD@'
$doors = @(
  @{ Name = 'cid-ipxe'; User = 'iPXE';       Vendor = $null;                     File = "http://$head/m/" + '${netX/mac:hexhyp}' + '/boot.ipxe' },
  @{ Name = 'cid-bios'; User = $null;        Vendor = 'PXEClient:Arch:00000*';   File = 'undionly.kpxe' },
  @{ Name = 'cid-uefi'; User = $null;        Vendor = 'PXEClient:Arch:00007*';   File = 'shimx64.efi' },
  @{ Name = 'cid-uefi-9'; User = $null;      Vendor = 'PXEClient:Arch:00009*';   File = 'shimx64.efi' },
  @{ Name = 'cid-http'; User = $null;        Vendor = 'HTTPClient:Arch:00016*';  File = "http://$head/shimx64.efi" }
)
$order = 1
foreach ($door in $doors) {
  if ($door.User) {
    Add-DhcpServerv4Class -Name $door.Name -Type User -Data $door.User
    Add-DhcpServerv4Policy -Name $door.Name -Condition OR -UserClass EQ,$door.Name -ProcessingOrder $order
  } else {
    Add-DhcpServerv4Class -Name $door.Name -Type Vendor -Data $door.Vendor.TrimEnd('*')
    Add-DhcpServerv4Policy -Name $door.Name -Condition OR -VendorClass EQ,"$($door.Name)*" -ProcessingOrder $order
  }
  Set-DhcpServerv4OptionValue -PolicyName $door.Name -OptionId 66 -Value $head
  Set-DhcpServerv4OptionValue -PolicyName $door.Name -OptionId 67 -Value $door.File
  $order++
}
# UEFI HTTP Boot takes an answer only with option 60. Its value ends with a zero byte for GRUB's sake.
Add-DhcpServerv4OptionDefinition -Name 'Vendor class' -OptionId 60 -Type String -ErrorAction SilentlyContinue
Set-DhcpServerv4OptionValue -PolicyName 'cid-http' -OptionId 60 -Value "HTTPClient`0"
"#;
