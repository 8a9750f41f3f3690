"""Who may use which route, as one table. A route that is not in it can be used by nobody.

A member sees what is theirs; everything else does not exist for them (404). Operators see every workspace, and may
stop it; what is inside a workspace is its owner's alone.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from fairwater.domain.failure import Permanent
from fairwater.domain.ids import UserId
from fairwater.ports.accounts import Account, Role
from fairwater.ports.catalogue import Entry
from fairwater.ports.database import Transaction
from fairwater.server.authentication import Principal
from fairwater.server.services import services_of


class Rule(StrEnum):
    ANYONE = "anyone"  # nobody is asked who they are
    ACCOUNT = "account"  # any account, about what is its own
    OWNER = "owner"  # the workspace's owner alone
    OWNER_OR_STAFF = "owner or staff"  # and operators and administrators
    SELF_OR_ADMIN = "self or admin"  # about an account: itself, and administrators
    OPERATOR = "operator"  # operators and administrators
    ADMIN = "admin"


RULES: dict[str, Rule] = {
    "list_workspaces": Rule.ACCOUNT,
    "create_workspace": Rule.ACCOUNT,
    "show_workspace": Rule.OWNER_OR_STAFF,
    "start_workspace": Rule.OWNER,
    "stop_workspace": Rule.OWNER_OR_STAFF,
    "delete_workspace": Rule.OWNER,
    "exec_command": Rule.OWNER,
    "exec_terminal": Rule.OWNER,
    "read_file": Rule.OWNER,
    "write_file": Rule.OWNER,
    "read_logs": Rule.OWNER,
    "list_tasks": Rule.OWNER,
    "read_task_log": Rule.OWNER,
    "workspace_events": Rule.OWNER_OR_STAFF,
    "all_events": Rule.ACCOUNT,
    "show_me": Rule.ACCOUNT,
    "list_users": Rule.OPERATOR,
    "create_user": Rule.ADMIN,
    "change_user": Rule.SELF_OR_ADMIN,  # role and blocked: administrators alone
    "list_tokens": Rule.SELF_OR_ADMIN,
    "create_token": Rule.SELF_OR_ADMIN,
    "delete_token": Rule.SELF_OR_ADMIN,
    "list_credentials": Rule.SELF_OR_ADMIN,
    "add_credential": Rule.SELF_OR_ADMIN,
    "delete_credential": Rule.SELF_OR_ADMIN,
    "list_variables": Rule.SELF_OR_ADMIN,
    "set_variable": Rule.SELF_OR_ADMIN,
    "delete_variable": Rule.SELF_OR_ADMIN,
    "list_organisations": Rule.ACCOUNT,
    "list_organisation_variables": Rule.OPERATOR,
    # Not for operators: by a variable such as BASH_ENV, whoever sets it runs commands in everybody's workspaces.
    "set_organisation_variable": Rule.ADMIN,
    "delete_organisation_variable": Rule.ADMIN,
    "create_login_code": Rule.ADMIN,
    "exchange_login_code": Rule.ANYONE,
    "show_version": Rule.ANYONE,
    "show_configuration": Rule.ADMIN,
    "show_node": Rule.OPERATOR,
    "download_backup": Rule.ADMIN,
    "upload_backup": Rule.ADMIN,
    "rotate_keys": Rule.ADMIN,
    "metrics": Rule.OPERATOR,
    "healthz": Rule.ANYONE,
    "readyz": Rule.ANYONE,
}
"""By the name of the route."""


async def authorise(connection: HTTPConnection) -> Principal | None:
    """The dependency of every route: who asks, once the table lets them in; None where nobody is asked.

    What depends on the object (`OWNER…`, `SELF…`) is decided where it is read: `workspace_for`, `account_for`.
    """
    rule = RULES[connection.scope["route"].name]
    if rule is Rule.ANYONE:
        return None
    principal = await services_of(connection).authenticator.principal(connection)
    role = principal.account.role
    if (rule is Rule.OPERATOR and not principal.is_staff) or (rule is Rule.ADMIN and role is not Role.ADMIN):
        raise forbidden(f"this is for accounts with the role '{rule}', yours has the role '{role}'")
    connection.scope["fairwater.rule"] = rule
    return principal


async def caller(principal: Annotated[Principal | None, Depends(authorise)]) -> Principal:
    assert principal is not None, "a route for anyone must not ask who is calling"
    return principal


Caller = Annotated[Principal, Depends(caller)]


async def workspace_for(
    connection: HTTPConnection, transaction: Transaction, principal: Principal, reference: str
) -> Entry:
    """The workspace that the route is about, if its rule lets `principal` use it there.

    Raises:
        Permanent: `no_such_workspace`, `ambiguous`; `forbidden`, for staff, who may know that it exists.
    """
    rule: Rule = connection.scope["fairwater.rule"]
    if rule is Rule.OWNER_OR_STAFF and principal.is_staff:
        return await transaction.workspaces.find(reference, None, principal.id)
    assert rule in {Rule.OWNER, Rule.OWNER_OR_STAFF}, rule
    try:
        return await transaction.workspaces.find(reference, principal.id, principal.id)
    except Permanent as failure:
        if failure.code != "no_such_workspace" or not principal.is_staff:
            raise
    entry = await transaction.workspaces.find(reference, None, principal.id)
    raise forbidden(f"workspace {entry.workspace.id} is {entry.owner_name}'s: only they may do this")


async def account_for(
    connection: HTTPConnection, transaction: Transaction, principal: Principal, reference: str
) -> Account:
    """The account that the route is about: `me`, an id or a name.

    Raises:
        Permanent: `no_such_user`; `forbidden`, for operators, who may know that it exists.
    """
    if reference == "me":
        reference = principal.id
    account = await find_account(transaction, reference)
    rule: Rule = connection.scope["fairwater.rule"]
    if account is not None and rule is Rule.SELF_OR_ADMIN and account.id != principal.id:
        if principal.account.role is Role.OPERATOR:
            raise forbidden("this is for the account itself and for administrators")
        if principal.account.role is not Role.ADMIN:
            account = None
    if account is None:
        raise no_such_user(reference)
    return account


async def find_account(transaction: Transaction, reference: str) -> Account | None:
    """By id, else by name."""
    return await transaction.accounts.find(UserId(reference)) or await transaction.accounts.named(reference)


def no_such_user(reference: str) -> Permanent:
    return Permanent(f"there is no account {reference[:80]!r}: `fairwater user list` shows them", code="no_such_user")


def forbidden(message: str) -> Permanent:
    return Permanent(message, code="forbidden")
