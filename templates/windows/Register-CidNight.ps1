<#
.SYNOPSIS
    Lends this PC to the CID cluster at {{ head }} at a given time, if nobody is logged on.
.DESCRIPTION
    Installs a scheduled task. At its time the task looks whether anybody is logged on; if not, it asks the firmware to
    boot from the network once (bcdedit bootsequence, which is the UEFI variable BootNext) and restarts. The boot order stays
    as it is: the restart after that is Windows again. Whether the PC is taken is the head's decision.
    BitLocker: keep recovery keys at hand and try one PC first. Do not suspend BitLocker: the boot that ends in Windows is the
    usual one.
    Unregister-CidNight.ps1 takes all of it away. Untested on real Windows so far.
.PARAMETER At
    Time of day at which the cluster opens, for example 20:00.
.PARAMETER Days
    Days of the week; all of them when not given.
.PARAMETER Entry
    Identifier of the firmware's network entry, {xxxxxxxx-xxxx-...}, if the script does not find it by itself.
.EXAMPLE
    .\Register-CidNight.ps1 -At 20:00 -Days Monday, Tuesday, Wednesday, Thursday, Friday -WhatIf
#>
#Requires -Version 5.1
#Requires -RunAsAdministrator
[CmdletBinding(SupportsShouldProcess = $true)]
param(
    [Parameter(Mandatory = $true)]
    [ValidatePattern('^([01][0-9]|2[0-3]):[0-5][0-9]$')]
    [string] $At,

    [DayOfWeek[]] $Days = @(0, 1, 2, 3, 4, 5, 6),

    [ValidatePattern('^\{[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\}$')]
    [string] $Entry
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$folder = Join-Path $env:ProgramData 'CID'
$script = Join-Path $folder 'Start-CidNight.ps1'
$taskName = 'CID night'

# The firmware's entry that boots over IPv4. bcdedit speaks the language of Windows, so only what firmware and protocol
# call things is looked for: an identifier, and PXE or IPv4 in the description.
function Find-NetworkEntry {
    $text = (& bcdedit.exe /enum firmware) -join "`n"
    if ($LASTEXITCODE -ne 0) {
        throw 'bcdedit cannot list firmware entries: this PC starts in BIOS mode; put the network first in its boot order instead.'
    }
    $guid = '\{[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\}'
    $blocks = @(($text -split '\n\s*\n') | Where-Object { $_ -match $guid -and $_ -notmatch '\\EFI\\' })
    foreach ($pattern in @('PXE.*IP ?v?4|IP ?v?4.*PXE', 'IP ?v?4', 'PXE', 'Network|LAN|Ethernet')) {
        foreach ($block in $blocks) {
            if ($block -match $pattern -and $block -notmatch 'HTTP') {
                return [regex]::Match($block, $guid).Value
            }
        }
    }
    throw 'The firmware lists no network entry. Turn on its network stack (often called PXE or UEFI network), or give -Entry.'
}

if (-not $Entry) {
    $Entry = Find-NetworkEntry
}
Write-Output "network entry of the firmware: $Entry"

# What the task runs. Single quotes: nothing in it is expanded here; the entry is put in afterwards.
$content = @'
# Written by Register-CidNight.ps1. Lends this PC to the cluster for one boot, unless somebody is logged on.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
# Through cmd: Windows PowerShell takes what a program writes to stderr for an error, and quser does so when nobody is there.
$sessions = @(& cmd.exe /c 'quser 2>nul' | Select-Object -Skip 1)
$desktops = @(Get-Process -Name explorer -ErrorAction SilentlyContinue)
if ($sessions.Count -gt 0 -or $desktops.Count -gt 0) {
    # Disconnected sessions count: their programs are still somebody's.
    exit 0
}
& bcdedit.exe /set '{fwbootmgr}' bootsequence '@ENTRY@'
if ($LASTEXITCODE -ne 0) {
    exit 1
}
& shutdown.exe /r /t 30 /c 'This PC joins the cluster. Log on now and run: shutdown /a'
exit $LASTEXITCODE
'@
$content = $content.Replace('@ENTRY@', $Entry)

if ($PSCmdlet.ShouldProcess($script, 'write')) {
    New-Item -ItemType Directory -Path $folder -Force | Out-Null
    # Only administrators may change what SYSTEM runs (S-1-5-32-544, S-1-5-18; everybody else reads).
    & icacls.exe $folder /inheritance:r /grant '*S-1-5-32-544:(OI)(CI)F' '*S-1-5-18:(OI)(CI)F' '*S-1-5-32-545:(OI)(CI)RX' | Out-Null
    if ($LASTEXITCODE -ne 0) {
        throw "The rights of $folder cannot be set; nothing was installed."
    }
    Set-Content -Path $script -Value $content -Encoding UTF8
}

if ($PSCmdlet.ShouldProcess($taskName, "register for $At")) {
    $arguments = "-NoProfile -NonInteractive -ExecutionPolicy Bypass -File `"$script`""
    $action = New-ScheduledTaskAction -Execute 'powershell.exe' -Argument $arguments
    $trigger = New-ScheduledTaskTrigger -Weekly -DaysOfWeek $Days -At $At
    $principal = New-ScheduledTaskPrincipal -UserId 'SYSTEM' -LogonType ServiceAccount -RunLevel Highest
    # A PC that was off at that time is not restarted when it comes on in the morning.
    $settings = New-ScheduledTaskSettingsSet -AllowStartIfOnBatteries:$false -ExecutionTimeLimit (New-TimeSpan -Minutes 5)
    Register-ScheduledTask -TaskName $taskName -Action $action -Trigger $trigger -Principal $principal `
        -Settings $settings -Force | Out-Null
    Write-Output "registered: $taskName at $At"
}
