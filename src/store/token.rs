//! Queries of the management API's tokens.

use chrono::{DateTime, Utc};
use entity::token::{ActiveModel, Column, Entity, Model};
use sea_orm::{
    ActiveModelTrait as _, ColumnTrait as _, Condition, ConnectionTrait, DatabaseTransaction, DbBackend,
    EntityTrait as _, PaginatorTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _, Set,
    sea_query::Expr,
    sqlx::{self, ColumnIndex, Decode, Row, Type},
};
use uuid::Uuid;

use super::{
    error::{Error, Result},
    lane::Connection,
};
use crate::domain::token::{Role, Token, TokenName};

/// The SHA-256 digest of a token's secret.
pub type Digest = [u8; 32];

/// The key of the advisory lock under which tokens are made one after the other: "api-toke" in ASCII.
const CREATION_LOCK: i64 = 0x6170_692D_746F_6B65;

const LIVE_ON_POSTGRES: &str = "
SELECT id, name, digest, role, created_at, created_by, expires_at, revoked_at, last_used_at FROM api_token
WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $1)";

const LIVE_ON_SQLITE: &str = "
SELECT id, name, digest, role, created_at, created_by, expires_at, revoked_at, last_used_at FROM api_token
WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?1)";

/// The tokens that are live at an instant, each with the digest of its secret.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn load(connection: &mut Connection, at: DateTime<Utc>) -> Result<Vec<(Digest, Token)>> {
    match connection {
        Connection::Postgres(connection) => {
            let rows = sqlx::query(LIVE_ON_POSTGRES).bind(at).fetch_all(connection).await?;
            rows.iter().map(live).collect()
        }
        Connection::Sqlite(connection) => {
            let rows = sqlx::query(LIVE_ON_SQLITE).bind(at).fetch_all(&mut **connection).await?;
            rows.iter().map(live).collect()
        }
    }
}

fn live<R: Row>(row: &R) -> Result<(Digest, Token)>
where
    usize: ColumnIndex<R>,
    for<'r> Uuid: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> String: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> DateTime<Utc>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<DateTime<Utc>>: Decode<'r, R::Database> + Type<R::Database>,
{
    let row = Model {
        id: row.try_get(0)?,
        name: row.try_get(1)?,
        digest: row.try_get(2)?,
        role: row.try_get(3)?,
        created_at: row.try_get(4)?,
        created_by: row.try_get(5)?,
        expires_at: row.try_get(6)?,
        revoked_at: row.try_get(7)?,
        last_used_at: row.try_get(8)?,
    };
    let digest = row.digest.as_slice().try_into().map_err(|_| Error::corrupt("digest"))?;
    Ok((digest, from_row(row)?))
}

/// How many tokens are live at `now`: a repetition of [`Token::is_live`], which a test holds to it.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn count_live<C: ConnectionTrait>(connection: &C, now: DateTime<Utc>) -> Result<u64> {
    let unfinished = Condition::any().add(Column::ExpiresAt.is_null()).add(Column::ExpiresAt.gt(now));
    Ok(Entity::find().filter(Column::RevokedAt.is_null()).filter(unfinished).count(connection).await?)
}

/// Waits until nobody else makes a token, until the transaction ends: two that are made at once would each not count
/// the other. On SQLite a writer is alone anyway.
///
/// # Errors
///
/// [`Error::Unavailable`] when it takes too long.
pub async fn lock_creation(transaction: &DatabaseTransaction) -> Result<()> {
    if transaction.get_database_backend() == DbBackend::Postgres {
        transaction.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({CREATION_LOCK})")).await?;
    }
    Ok(())
}

/// The token of an id.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn find<C: ConnectionTrait>(connection: &C, id: Uuid) -> Result<Option<Token>> {
    Entity::find_by_id(id).one(connection).await?.map(from_row).transpose()
}

/// The token of a name.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn find_by_name<C: ConnectionTrait>(connection: &C, name: &TokenName) -> Result<Option<Token>> {
    Entity::find().filter(Column::Name.eq(name.as_str())).one(connection).await?.map(from_row).transpose()
}

/// The token of an id, held against other writers until the transaction ends.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn lock(transaction: &DatabaseTransaction, id: Uuid) -> Result<Option<Token>> {
    Entity::find_by_id(id).lock_exclusive().one(transaction).await?.map(from_row).transpose()
}

/// Up to `limit` tokens after an id, ascending by id.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn list<C: ConnectionTrait>(connection: &C, after: Option<Uuid>, limit: u64) -> Result<Vec<Token>> {
    let mut query = Entity::find().order_by_asc(Column::Id).limit(limit);
    if let Some(after) = after {
        query = query.filter(Column::Id.gt(after));
    }
    query.all(connection).await?.into_iter().map(from_row).collect()
}

/// Records a new token with the digest of its secret.
///
/// # Errors
///
/// [`Error::Duplicate`] when another token has, or had, its name.
pub async fn insert(transaction: &DatabaseTransaction, token: &Token, digest: &Digest) -> Result<()> {
    // Taken apart field by field, so that a field added to the domain cannot be forgotten here.
    let Token { id, name, role, created_at, created_by, expires_at, revoked_at, last_used_at } = token;
    let row = ActiveModel {
        id: Set(*id),
        name: Set(name.as_str().to_owned()),
        digest: Set(digest.to_vec()),
        role: Set(role.as_str().to_owned()),
        created_at: Set(*created_at),
        created_by: Set(created_by.clone()),
        expires_at: Set(*expires_at),
        revoked_at: Set(*revoked_at),
        last_used_at: Set(*last_used_at),
    };
    Entity::insert(row).exec_without_returning(transaction).await?;
    Ok(())
}

/// Writes when a token that was locked before was revoked: all else of a token stays as it was made.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn update(transaction: &DatabaseTransaction, token: &Token) -> Result<()> {
    let row = ActiveModel { id: Set(token.id), revoked_at: Set(token.revoked_at), ..Default::default() };
    row.update(transaction).await?;
    Ok(())
}

/// Writes when a token last let somebody in, unless a later use is known: several replicas may tell, in any order.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn used<C: ConnectionTrait>(connection: &C, id: Uuid, at: DateTime<Utc>) -> Result<()> {
    let earlier = Condition::any().add(Column::LastUsedAt.is_null()).add(Column::LastUsedAt.lt(at));
    Entity::update_many()
        .col_expr(Column::LastUsedAt, Expr::value(at))
        .filter(Column::Id.eq(id))
        .filter(earlier)
        .exec(connection)
        .await?;
    Ok(())
}

/// What a row holds.
pub(super) fn from_row(row: Model) -> Result<Token> {
    let Model { id, name, digest: _, role, created_at, created_by, expires_at, revoked_at, last_used_at } = row;
    Ok(Token {
        id,
        name: TokenName::parse(&name).map_err(|_| Error::corrupt("name"))?,
        role: Role::parse(&role).ok_or_else(|| Error::corrupt("role"))?,
        created_at,
        created_by,
        expires_at,
        revoked_at,
        last_used_at,
    })
}
