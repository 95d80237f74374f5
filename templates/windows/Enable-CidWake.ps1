<#
.SYNOPSIS
    Lets this PC be woken by the CID head at {{ head }}: Wake-on-LAN on its wired adapters, fast start-up off.
.DESCRIPTION
    With fast start-up Windows does not shut down but hibernates, and many adapters then ignore magic packets.
    What was set before is written to %ProgramData%\CID\wake-before.json; -Undo puts it back.
    The firmware has a switch of its own for Wake-on-LAN, which no script can turn.
    Untested on real Windows so far: try it on one PC first.
.PARAMETER Undo
    Puts back what was set before.
.EXAMPLE
    .\Enable-CidWake.ps1 -WhatIf
#>
#Requires -Version 5.1
#Requires -RunAsAdministrator
[CmdletBinding(SupportsShouldProcess = $true)]
param(
    [switch] $Undo
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$folder = Join-Path $env:ProgramData 'CID'
$before = Join-Path $folder 'wake-before.json'
$powerKey = 'HKLM:\SYSTEM\CurrentControlSet\Control\Session Manager\Power'

function Get-WiredAdapter {
    # 802.3 and nothing virtual: Wake-on-LAN is for these.
    Get-NetAdapter -Physical | Where-Object { $_.MediaType -eq '802.3' }
}

function Get-FastStartup {
    $value = Get-ItemProperty -Path $powerKey -Name 'HiberbootEnabled' -ErrorAction SilentlyContinue
    if ($null -eq $value) { return $null }
    return $value.HiberbootEnabled
}

if ($Undo) {
    if (-not (Test-Path $before)) {
        throw "There is no $before: nothing of ours is to be put back."
    }
    $saved = Get-Content -Path $before -Raw | ConvertFrom-Json
    if ($null -ne $saved.FastStartup -and $PSCmdlet.ShouldProcess('fast start-up', "set to $($saved.FastStartup)")) {
        Set-ItemProperty -Path $powerKey -Name 'HiberbootEnabled' -Value ([int] $saved.FastStartup)
    }
    foreach ($adapter in @($saved.Adapters)) {
        if ($PSCmdlet.ShouldProcess($adapter.Name, "wake on magic packet: $($adapter.Wake)")) {
            Set-NetAdapterPowerManagement -Name $adapter.Name -WakeOnMagicPacket $adapter.Wake
        }
    }
    if ($PSCmdlet.ShouldProcess($before, 'remove')) {
        Remove-Item -Path $before
    }
    return
}

$adapters = @(Get-WiredAdapter)
if ($adapters.Count -eq 0) {
    throw 'This PC has no wired network adapter: it cannot be woken over the network.'
}

# What was there first is kept, whatever number of times this runs.
if (-not (Test-Path $before) -and $PSCmdlet.ShouldProcess($before, 'write down what is set now')) {
    $saved = [ordered] @{
        FastStartup = Get-FastStartup
        Adapters    = @($adapters | ForEach-Object {
                $power = Get-NetAdapterPowerManagement -Name $_.Name
                [ordered] @{ Name = $_.Name; Wake = [string] $power.WakeOnMagicPacket }
            } | Where-Object { $_.Wake -ne 'Unsupported' })
    }
    New-Item -ItemType Directory -Path $folder -Force | Out-Null
    ConvertTo-Json -InputObject $saved -Depth 4 | Set-Content -Path $before -Encoding UTF8
}

if ($PSCmdlet.ShouldProcess('fast start-up', 'turn off')) {
    Set-ItemProperty -Path $powerKey -Name 'HiberbootEnabled' -Value 0 -Type DWord
}

foreach ($adapter in $adapters) {
    $power = Get-NetAdapterPowerManagement -Name $adapter.Name
    if ([string] $power.WakeOnMagicPacket -eq 'Unsupported') {
        Write-Warning "$($adapter.Name) ($($adapter.InterfaceDescription)): its driver knows no Wake-on-LAN; try the maker's driver."
        continue
    }
    if ($PSCmdlet.ShouldProcess($adapter.Name, 'wake on magic packet')) {
        Set-NetAdapterPowerManagement -Name $adapter.Name -WakeOnMagicPacket Enabled
        # What powercfg calls a device is the adapter's description. A driver that refuses is named, not fatal.
        & powercfg.exe /deviceenablewake $adapter.InterfaceDescription
        if ($LASTEXITCODE -ne 0) {
            Write-Warning "powercfg refuses $($adapter.InterfaceDescription); look at its power page in the device manager."
        }
    }
    Write-Output "$($adapter.Name) $($adapter.MacAddress)"
}
