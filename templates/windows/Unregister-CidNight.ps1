<#
.SYNOPSIS
    Takes away what Register-CidNight.ps1 installed: the task, its script, a network boot that is still pending.
.DESCRIPTION
    Wake-on-LAN is put back by Enable-CidWake.ps1 -Undo. Untested on real Windows so far.
.EXAMPLE
    .\Unregister-CidNight.ps1 -WhatIf
#>
#Requires -Version 5.1
#Requires -RunAsAdministrator
[CmdletBinding(SupportsShouldProcess = $true)]
param()

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$folder = Join-Path $env:ProgramData 'CID'
$script = Join-Path $folder 'Start-CidNight.ps1'
$taskName = 'CID night'

$task = Get-ScheduledTask -TaskName $taskName -ErrorAction SilentlyContinue
if ($null -ne $task -and $PSCmdlet.ShouldProcess($taskName, 'unregister')) {
    Unregister-ScheduledTask -TaskName $taskName -Confirm:$false
}
if ((Test-Path $script) -and $PSCmdlet.ShouldProcess($script, 'remove')) {
    Remove-Item -Path $script
}
if ($PSCmdlet.ShouldProcess('bootsequence', 'delete if it is set')) {
    # Fails when none is set, which is what is wanted.
    & cmd.exe /c 'bcdedit /deletevalue {fwbootmgr} bootsequence >nul 2>nul'
}
# With wake-before.json in it the folder stays, for Enable-CidWake.ps1 -Undo.
if ((Test-Path $folder) -and @(Get-ChildItem -Path $folder -Force).Count -eq 0 -and $PSCmdlet.ShouldProcess($folder, 'remove')) {
    Remove-Item -Path $folder
}
